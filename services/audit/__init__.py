"""What has happened to user accounts, recorded for good."""
