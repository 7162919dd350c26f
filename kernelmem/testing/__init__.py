"""Shipped to users for their own tests: hypothesis strategies of networks and rows (needs ``pip install hypothesis``)."""
