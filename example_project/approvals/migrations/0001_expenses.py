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
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("email", models.EmailField(max_length=254)),
                ("amount", models.PositiveIntegerField()),
                ("decision", models.CharField(blank=True, max_length=10)),
                ("decided_by", models.CharField(blank=True, max_length=150)),
                ("paid", models.BooleanField(default=False)),
            ],
        ),
    ]
