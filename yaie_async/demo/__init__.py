"""What `yaie-async demo` does: a cold load from a hub on this machine, watched by a heartbeat (extra `demo`)."""
