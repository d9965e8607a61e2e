"""What the demo plays: one module per process. A scene says what to trigger, how far it is, and whether it came out right."""
