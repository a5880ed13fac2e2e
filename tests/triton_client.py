"""What a user of the stock tritonclient writes; a process of its own, as its proto and ours cannot share one.

`python tests/triton_client.py ADDRESS MODEL < {"context_ids": [...], "num_candidates": K}` prints one JSON object.
"""

import json
import sys

import numpy as np
import tritonclient.grpc as triton

BATCH = 1000


def main(address: str, model: str) -> None:
    asked = json.load(sys.stdin)
    client = triton.InferenceServerClient(address)
    found: dict[str, list[object]] = {"ITEM_IDS": [], "SCORES": [], "EXPERTS": []}
    for start in range(0, len(asked["context_ids"]), BATCH):
        ids = np.array([[name.encode()] for name in asked["context_ids"][start : start + BATCH]], object)
        contexts = triton.InferInput("CONTEXT_ID", list(ids.shape), "BYTES")
        contexts.set_data_from_numpy(ids)
        k = triton.InferInput("NUM_CANDIDATES", [1], "INT32")
        k.set_data_from_numpy(np.array([asked["num_candidates"]], np.int32))
        result = client.infer(model, [contexts, k], request_id="seven")
        for name, rows in found.items():
            rows.extend(result.as_numpy(name).tolist())
    ids_only = client.infer(model, [contexts], outputs=[triton.InferRequestedOutput("ITEM_IDS")])
    response = result.get_response(as_json=True)
    metadata = client.get_model_metadata(model, as_json=True)
    print(
        json.dumps(
            {
                "live": client.is_server_live(),
                "ready": client.is_server_ready(),
                "model_ready": client.is_model_ready(model, response["model_version"]),
                "server": client.get_server_metadata(as_json=True)["name"],
                "metadata": metadata,
                "version": response["model_version"],
                "parameters": response.get("parameters", {}),
                "id": response["id"],
                "default": [[item.decode() for item in row] for row in ids_only.as_numpy("ITEM_IDS").tolist()],
                "scores_not_asked_for": ids_only.as_numpy("SCORES") is None,
                **found,
                "ITEM_IDS": [[item.decode() for item in row] for row in found["ITEM_IDS"]],
            }
        )
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
