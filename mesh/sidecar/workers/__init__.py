"""Worker processes of a service: how many there are, what waits for them, what they import before they are forked."""
