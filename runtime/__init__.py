"""What every program of the project needs to run: settings, logs, the connection to Temporal."""
