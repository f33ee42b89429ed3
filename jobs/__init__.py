"""What a user submits: each job is a frozen dataclass of options and one `run`. Ray lives here alone."""
