"""What the shop asks people."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm
from django.contrib.auth.models import User
from django.contrib.auth.password_validation import validate_password

from example_project.shop.models import Post


class EmailForm(forms.Form):
    """How to reach a visitor who is not logged in."""

    email = forms.EmailField(
        label="E-mail address",
        max_length=254,
        widget=forms.EmailInput(attrs={"autocomplete": "email", "placeholder": "you@example.com"}),
    )


class SignUpForm(forms.Form):
    """A new account. The e-mail address is also the name to log in with."""

    name = forms.CharField(
        label="Your name", max_length=60, widget=forms.TextInput(attrs={"autocomplete": "name"})
    )
    email = forms.EmailField(
        label="E-mail address",
        max_length=150,
        widget=forms.EmailInput(attrs={"autocomplete": "email", "placeholder": "you@example.com"}),
    )
    password = forms.CharField(
        label="Password",
        strip=False,
        max_length=128,
        help_text="At least 8 characters, and not a common one.",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password"}),
    )

    def clean_email(self) -> str:
        email: str = self.cleaned_data["email"].lower()
        if User.objects.filter(username=email).exists():
            raise forms.ValidationError(ALREADY_KNOWN)
        return email

    def clean(self) -> dict[str, Any]:
        facts = self.cleaned_data
        if "password" in facts:
            try:
                validate_password(facts["password"], self.user())
            except forms.ValidationError as error:
                self.add_error("password", error)
        return facts

    def user(self) -> User:
        """The account asked for, not yet saved and without a password."""
        facts = self.cleaned_data
        email = facts.get("email", "")
        return User(username=email, email=email, first_name=facts.get("name", ""))


ALREADY_KNOWN = "There is an account with this e-mail address already. Log in instead?"


class LogInForm(AuthenticationForm):
    """E-mail address and password."""

    error_messages = {
        **AuthenticationForm.error_messages,
        "invalid_login": "This e-mail address and this password do not belong together.",
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].label = "E-mail address"

    def clean_username(self) -> str:
        name: str = self.cleaned_data["username"]
        return name.lower() if "@" in name else name


class PostForm(forms.ModelForm):  # type: ignore[type-arg]
    """A note for the other customers."""

    class Meta:
        model = Post
        fields = ["title", "body"]
        widgets = {"body": forms.Textarea(attrs={"rows": 8})}
        labels = {"body": "Your note"}
