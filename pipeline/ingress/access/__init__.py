"""Who may do what: tokens and purchase tickets. Independent of HTTP, so that other interfaces can use it."""
