"""Online codes: every label is predicted from the rows before it."""
