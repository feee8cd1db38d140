"""The tables that operators inspect, and their pages; without Faust."""
