"""tandem.v1 protobuf to values of model/ and back, validation with field paths, and the google.rpc status codec."""
