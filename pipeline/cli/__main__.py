"""`python -m pipeline.cli`: the same as `seckill`."""

from pipeline.cli import main

main()
