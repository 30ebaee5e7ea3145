"""What training would make of a dataset: one row shown, or all rows counted."""

from __future__ import annotations

from typing import Any

from app.datasets import rendering, service
from app.datasets.check_schemas import CheckOut, CheckRequest, PreviewOut, PreviewRequest, RenderRequest
from app.datasets.tables import Dataset
from app.kit.database import reading
from app.kit.errors import Conflict, InvalidValue, NotFound
from app.models.bases import ready_base, weights_folder
from app.models.chat_templates import require_end, text_of
from app.models.own_code import runs_own_code
from app.models.tables import Model

DEFAULT_LENGTH = 2048


def preview(project_id: str, dataset_id: str, request: PreviewRequest) -> PreviewOut:
    """Row number `row` (from 0) as the base model sees it in training. Blocks.

    Raises `NotFound` for dataset or row, what `ready_base` does, `InvalidValue` where the template cannot render the row, and
    `Unavailable`.
    """
    dataset, base = _find(project_id, dataset_id, request)
    length, row = _length(base, request.max_length), request.row
    if row >= dataset.rows:
        raise NotFound(
            f"The dataset '{dataset.id}' has {dataset.rows} rows; there is no row {row}.",
            param="row",
            code="row_not_found",
            hint="Rows are counted from 0.",
        )
    sequences = _render(base, dataset, request, "preview", row=row, max_length=length)
    found = {"dataset": dataset.id, "base_model": base.name, "row": row, "max_length": length, "sequences": sequences}
    return PreviewOut.model_validate(found)


def check(project_id: str, dataset_id: str, request: CheckRequest) -> CheckOut:
    """Lengths, cuts, refusals and overlap with the dataset `validation` of the rows, as training would meet them. Blocks.

    Raises `NotFound` for the dataset, what `ready_base` does, `InvalidValue` where there is no template to render rows with
    or no dataset `validation`, and `Unavailable`.
    """
    dataset, base = _find(project_id, dataset_id, request)
    length = _length(base, request.max_length)
    other = _validation(project_id, request.validation) if request.validation is not None else None
    counted = _render(
        base,
        dataset,
        request,
        "check",
        max_length=length,
        validation=str(service.rows_path(other)) if other else None,
        validation_kind=other.kind if other else None,
    )
    found = {"dataset": dataset.id, "base_model": base.name, "max_length": length, "rows": dataset.rows}
    return CheckOut.model_validate(found | counted)


def _find(project_id: str, dataset_id: str, request: RenderRequest) -> tuple[Dataset, Model]:
    with reading() as session:
        dataset = service.find(session, project_id, dataset_id)
        base = ready_base(session, project_id, request.base_model)
    if request.chat_template is None and base.chat_template is None and dataset.kind != "text":
        raise InvalidValue(
            f"The base model '{base.name}' has no chat template, so {dataset.kind} rows cannot be rendered for it.",
            param="base_model",
            hint="Send a 'chat_template': its text, or a name such as 'chatml'.",
        )
    return dataset, base


def _validation(project_id: str, id: str) -> Dataset:
    try:
        return service.get(project_id, id)
    except Conflict as error:
        error.param = "validation"
        raise
    except NotFound as error:
        raise InvalidValue(error.message, param="validation", code=error.code, hint=error.hint) from None


def _length(base: Model, asked: int | None) -> int:
    context = base.facts.get("max_length")
    if asked is None:
        return min(DEFAULT_LENGTH, context or DEFAULT_LENGTH)
    if context and asked > context:
        raise InvalidValue(
            f"max_length {asked} is above {context}, the context of '{base.name}'.",
            param="max_length",
            hint=f"Use at most {context}.",
        )
    return asked


def renderer_model(base: Model, template: str | None) -> dict[str, Any]:
    """The model as a request to the renderer names it. Raises `InvalidValue` where its files are gone."""
    try:
        folder = str(weights_folder(base))
    except FileNotFoundError as error:
        raise InvalidValue(
            f"The files of '{base.name}' are not there any more: {error.filename or error}.",
            param="base_model",
            code="model_unreadable",
            hint="Register or train it again.",
        ) from None
    return {"base_model": folder, "chat_template": template, "own_code": runs_own_code(base)}


def _render(base: Model, dataset: Dataset, request: RenderRequest, do: str, **arguments: Any) -> Any:
    """The result of a request to the renderer. Raises `InvalidValue` for what it refuses."""
    template = base.chat_template
    if request.chat_template is not None:
        template = text_of(request.chat_template)
        require_end(template, base.facts.get("templates"), base.name)
    handed = request.template_arguments if request.template_arguments is not None else base.template_arguments
    model = renderer_model(base, template)
    rows = {"rows": str(service.rows_path(dataset)), "kind": dataset.kind, "template_arguments": handed}
    answer = rendering.ask({"do": do, **model, **rows, **arguments})
    if "error" not in answer:
        return answer["result"]
    code, message = answer["error"]["code"], answer["error"]["message"]
    match code:
        case "template_refused":
            where = f" on row {arguments['row']}" if "row" in arguments else ""
            whose = "" if request.chat_template else f"of '{base.name}' "
            raise InvalidValue(
                f"The chat template {whose}failed{where}: {message}",
                param="row" if where else "base_model",
                code=code,
                hint="Use a chat_template that fits these rows, or change the rows.",
            )
        case "model_unreadable":
            raise InvalidValue(
                message,
                param="base_model",
                code=code,
                hint="Register the model from a folder that transformers can load.",
            )
    raise RuntimeError(f"the renderer failed: {message}")
