"""Who may do what: tokens and purchase tickets. Free of HTTP: other doors to the pipeline use the same."""
