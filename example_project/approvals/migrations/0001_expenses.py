import uuid
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Expense",
            fields=[
                (
                    "id",
                    models.UUIDField(
                        default=uuid.uuid4, editable=False, primary_key=True, serialize=False
                    ),
                ),
                (
                    "event_id",
                    models.UUIDField(editable=False, help_text="What has started its flow."),
                ),
                ("email", models.EmailField(max_length=254)),
                ("amount", models.PositiveIntegerField()),
                ("decision", models.CharField(blank=True, max_length=10)),
                ("decided_by", models.CharField(blank=True, max_length=150)),
                ("paid", models.BooleanField(default=False)),
            ],
        ),
    ]
