import django.db.models.deletion
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Account",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("user_id", models.CharField(max_length=40, unique=True)),
                ("email", models.EmailField(max_length=254)),
                ("name", models.CharField(max_length=80)),
                ("plan", models.CharField(max_length=20)),
                ("trial_ends_at", models.DateTimeField()),
                ("subscription_id", models.CharField(blank=True, max_length=40)),
                ("full_access", models.BooleanField(default=False)),
            ],
        ),
        migrations.CreateModel(
            name="Tracked",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("what", models.CharField(max_length=40)),
                ("user_id", models.CharField(max_length=40)),
            ],
        ),
        migrations.CreateModel(
            name="Workspace",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=100)),
                ("settings", models.JSONField(default=dict)),
                (
                    "account",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE, to="onboarding.account"
                    ),
                ),
            ],
        ),
    ]
