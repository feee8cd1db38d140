"""The whole system on one machine: a real broker, a real Redis, and the processes of this project.

Each program is a `Part` (what to start, how to see that it is ready) that runs as a `Process`.
"""
