"""Statistics that several packages report: intervals, ranks, correlations, corrections for many tests."""
