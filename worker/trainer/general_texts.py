"""A sample of general text, written for this: how much likelier a fine-tune finds it than its base says what was forgotten."""

from __future__ import annotations

TEXTS = (
    "The bakery on the corner opens at six. By then the first loaves have been cooling for half an hour, and the smell has "
    "reached the bus stop. Most people who come in before seven know what they want; they pay, say good morning and are gone "
    "again before the door has closed. Later there are parents with children, who stand a long time in front of the glass "
    "and choose with great care between two cakes that taste the same.",
    "Water boils at a lower temperature on a mountain than by the sea, because there is less air above it to press on its "
    "surface. At three thousand metres it boils at about ninety degrees, so an egg needs longer to become hard. A pot with a "
    "tight lid helps: the steam cannot leave, the pressure rises, and the water becomes hotter than it would in the open.",
    "def mean(numbers):\n    total = 0.0\n    for number in numbers:\n        total += number\n"
    "    return total / len(numbers)\n\n\nprint(mean([2, 4, 9]))  # 5.0\n",
    "Am Abend zog ein Gewitter über den See. Zuerst wurde das Licht gelb, dann legte sich der Wind, und für einen Augenblick "
    "war es so still, dass man die Kühe auf der anderen Seite hörte. Die Fischer hatten ihre Boote längst an Land gezogen. "
    "Als der Regen kam, saßen alle schon unter dem Dach und warteten auf die Suppe.",
    "Ma grand-mère gardait ses lettres dans une boîte à biscuits. Elle les relisait le dimanche, une par une, en commençant "
    "toujours par la plus ancienne. Quand on lui demandait pourquoi elle ne les rangeait pas dans un album, elle répondait "
    "qu'une lettre doit pouvoir sortir de son enveloppe comme le jour où elle est arrivée.",
    "El mercado se llena los sábados. Los vendedores gritan los precios de los tomates y de las naranjas, los niños corren "
    "entre los puestos y alguien toca la guitarra cerca de la fuente. A mediodía todo se acaba en pocos minutos: se pliegan "
    "las mesas, se barren las hojas, y la plaza vuelve a ser de las palomas.",
    "春天的时候,河边的柳树最先变绿。孩子们放学以后常常在那里放风筝,风大的时候,线会从手里飞快地跑出去。"
    "老人坐在长椅上聊天,说今年的雨比去年多,地里的菜应该长得不错。天快黑了,大家才慢慢回家吃饭。",
    "В маленьком городе был один кинотеатр и два книжных магазина. Зимой люди ходили туда не столько за книгами, сколько за "
    "теплом и разговором. Продавец знал всех по имени и помнил, кто что читал в прошлом месяце, поэтому советы его почти "
    "никогда не подводили.",
    "駅前の古い喫茶店では、今でも毎朝同じ曲が流れている。店主はコーヒーを一杯ずつ丁寧にいれ、急ぐ客にも急がない。"
    "窓の外では自転車が通り過ぎ、新聞を読む人がときどき顔を上げて空を見る。",
)
