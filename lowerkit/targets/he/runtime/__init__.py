"""What an artifact's client and server are made of: numpy and a CKKS library, nothing of lowerkit."""
