"""The engine of Tessera: data, adapters, training, evaluation, routing and jobs."""
