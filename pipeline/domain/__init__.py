"""Pure rules: no I/O, no clock, no third-party imports. Functions take values and the time, and return values."""
