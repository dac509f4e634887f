"""The queue's engine side: dispatcher, workers, events and sinks."""
