"""The HTTP entry point: writes purchases to the command log and answers clients with the decisions."""
