"""Attendees and their machines."""
