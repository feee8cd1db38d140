"""How storm and soak judge a run: which deaths they did not cause, and which processes grew."""

from collections import Counter

from chaos.soak import JUDGED_AFTER_S, WARM_S, ProcessSamples, Sample
from chaos.supervised import KILLED, Death, deaths, unexpected_deaths

OUTPUT = """\
ready in 9.1 s; Ctrl-C stops everything. Try:
worker-1 was killed by signal 9; restart 1 in 0.1 s
  /data/logs/worker-1.log:
    one
    two
worker-1 is ready again
ingress-1 exited with status 2; restart 1 in 0.1 s
  /data/logs/ingress-1.log:
    the ingress does not start
follower-1 was not ready within 60 s; restart 1 in 0.1 s
  (/data/logs/follower-1.log was never written)
stopping
kafka did not stop in time and was killed
Error: worker-1 was killed by signal 9 after 5 restarts within 60 s
  /data/logs/worker-1.log:
    three
"""


def test_every_death_is_reported_with_its_part_its_end_and_the_last_line_of_its_log() -> None:
    assert deaths(OUTPUT) == [
        Death("worker-1", KILLED, "two"),
        Death("ingress-1", "exited with status 2", "the ingress does not start"),
        Death("follower-1", "was not ready within 60 s", ""),
        Death("worker-1", KILLED, "three"),
    ]


def test_kills_beyond_our_own_count_as_deaths_that_we_did_not_cause() -> None:
    own = [
        "follower-1 was not ready within 60 s: ",
        "ingress-1 exited with status 2: the ingress does not start",
    ]
    assert unexpected_deaths(OUTPUT, Counter({"worker-1": 2})) == own
    assert unexpected_deaths(OUTPUT, Counter({"worker-1": 1})) == [
        *own,
        f"worker-1 {KILLED}, but not by us",
    ]


def test_memory_growth_is_measured_from_the_warm_baseline() -> None:
    life = ProcessSamples("ingress-1", 1, [Sample(0.0, 50), Sample(WARM_S - 1, 80)])
    assert life.ratio() is None
    life.samples.append(Sample(WARM_S, 100))
    assert life.ratio() is None
    life.samples += [Sample(WARM_S + JUDGED_AFTER_S + second, 120) for second in range(3)]
    assert life.ratio() == 1.2
