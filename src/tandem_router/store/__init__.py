"""Where events are kept. The first body is memory; a durable one is another body of the same port."""
