"""Page of audit.json of schema version 2."""
