from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Customer",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("email", models.EmailField(max_length=254)),
                ("mailed", models.BooleanField(default=False)),
                ("subscribed", models.BooleanField(default=False)),
                ("known_to_sales", models.BooleanField(default=False)),
                ("complete", models.BooleanField(default=False)),
            ],
        ),
    ]
