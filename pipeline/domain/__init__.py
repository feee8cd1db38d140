"""Pure rules. No I/O, no clock, no imports from outside: values in, values out, the time passed in."""
