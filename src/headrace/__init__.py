"""headrace: a real-time data platform."""
