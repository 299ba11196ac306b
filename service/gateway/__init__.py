import os

# before numpy is loaded: on busy cores, threads of its linear algebra spend most of their time waiting for each other
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
