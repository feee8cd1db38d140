"""What is derived from the decision log, without Faust: orders and dead letters.

`Follower` follows the decisions of one partition; a writer puts what they lead to into other topics, together with how
far that is: `ExactlyOnce` in Kafka transactions, `AtLeastOnce` for a broker that has none.
"""

from pipeline.followers.follower import Follower
from pipeline.followers.progress import Progress, group_of

__all__ = ["Follower", "Progress", "group_of"]
