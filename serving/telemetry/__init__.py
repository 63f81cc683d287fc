"""What the outside learns of a server: metrics, load reports, spans and log lines."""
