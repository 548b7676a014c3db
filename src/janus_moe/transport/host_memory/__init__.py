"""Exchange through memory that the instances of one host share."""
