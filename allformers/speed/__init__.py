"""What makes a prepared model fast. No model file knows of it."""
