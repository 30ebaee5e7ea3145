"""Routes of secrets."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from app.kit.errors import errors
from app.kit.pagination import Page, Paging, page_of
from app.kit.routing import NativeRoute
from app.kit.wire import Name
from app.projects.access import ToRead, ToWrite
from app.secrets import service
from app.secrets.schemas import SecretOut, SecretPut, secret_out

SecretName = Annotated[str, Path(description="The secret's name.")]

router = APIRouter(prefix="/secrets", tags=["secrets"], route_class=NativeRoute)


@router.put("/{name}", summary="Keep a secret", responses=errors(422))
def put_secret(
    name: Annotated[Name, Path(description="What it is for, as `hf_token`.")], request: SecretPut, project: ToWrite
) -> SecretOut:
    return secret_out(service.put(project, name, request.value))


@router.get("", summary="List secrets, without themselves", responses=errors(422))
def list_secrets(project: ToRead, page: Annotated[Paging, page_of("secret")]) -> Page[SecretOut]:
    secrets, more = service.list_secrets(project, page)
    return Page(data=[secret_out(secret) for secret in secrets], has_more=more)


@router.get("/{name}", summary="Get a secret, without itself", responses=errors(404))
def get_secret(name: SecretName, project: ToRead) -> SecretOut:
    return secret_out(service.get(project, name))


@router.delete("/{name}", status_code=204, summary="Forget a secret", responses=errors(404))
def delete_secret(name: SecretName, project: ToWrite) -> None:
    service.delete(project, name)
