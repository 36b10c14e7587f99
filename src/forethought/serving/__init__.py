"""Forethought inside other people's engines: what it learned to read and steer, served per request."""
