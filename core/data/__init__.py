"""From files to batches: formats, tasks, prompt templates, sampling."""
