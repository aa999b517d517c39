"""Meta-learning algorithms, one file each. A new one is a file here and a YAML in conf/algo."""
