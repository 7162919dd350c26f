"""Linear systems (K + ridge I) a = y."""
