"""A hostile web on loopback: payloads, a web server that misbehaves on request, and a name server that lies."""
