"""What every process of ours needs: event loop, logging, background tasks, its end."""
