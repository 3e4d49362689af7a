"""Where results go: tags, records, figures, loggers and files."""
