"""Certificates: from the votes of a smoothed classifier to an integer radius, and the record to replay it from."""
