"""`python -m softprompt_zoo`."""

from softprompt_zoo.cli import main

if __name__ == "__main__":
    main()
