"""The HTTP edge: ingest, data, health, live updates and the page. `create_app` and `serve` are in `app`."""
