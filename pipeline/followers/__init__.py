"""What is derived from the decision log, without Faust: orders and dead letters.

`Follower` follows the decisions of one partition. A writer writes the derived records, and its progress, to other
topics: `ExactlyOnce` in Kafka transactions, `AtLeastOnce` on a broker without transactions.
"""

from pipeline.followers.follower import Follower
from pipeline.followers.progress import Progress, group_of

__all__ = ["Follower", "Progress", "group_of"]
