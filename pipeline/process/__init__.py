"""What every process needs: settings, event loop, logging, background tasks, exit."""
