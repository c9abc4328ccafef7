"""One small, working part of each family: what `sslzoo new` writes, with the names changed."""
