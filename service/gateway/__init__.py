import os

# before numpy is imported: on busy cores its linear algebra's threads spend most of their time waiting for each other
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
