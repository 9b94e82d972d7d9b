"""MLflow: the runs that each stage logs, the store that they are in, and the saved views of their list.

MLflow is imported in this folder and nowhere else; it is set here, before that, to send no usage data.
"""

import os

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
